//go:build cgo

package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/tlsski/tlsski/internal/guarded"
)

// module is the part of *pkcs11.Ctx that is used here. Tests put faults in
// between.
type module interface {
	Initialize(...pkcs11.InitializeOption) error
	Finalize() error
	Destroy()
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetSlotInfo(slot uint) (pkcs11.SlotInfo, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	GetMechanismInfo(slot uint, m []*pkcs11.Mechanism) (pkcs11.MechanismInfo, error)
	OpenSession(slot, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(pkcs11.SessionHandle) error
	CloseAllSessions(slot uint) error
	GetSessionInfo(pkcs11.SessionHandle) (pkcs11.SessionInfo, error)
	Login(s pkcs11.SessionHandle, user uint, pin string) error
	FindObjectsInit(pkcs11.SessionHandle, []*pkcs11.Attribute) error
	FindObjects(s pkcs11.SessionHandle, most int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(pkcs11.SessionHandle) error
	GetAttributeValue(pkcs11.SessionHandle, pkcs11.ObjectHandle, []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	SignInit(pkcs11.SessionHandle, []*pkcs11.Mechanism, pkcs11.ObjectHandle) error
	Sign(pkcs11.SessionHandle, []byte) ([]byte, error)
	DecryptInit(pkcs11.SessionHandle, []*pkcs11.Mechanism, pkcs11.ObjectHandle) error
	Decrypt(pkcs11.SessionHandle, []byte) ([]byte, error)
	GenerateKeyPair(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error)
}

var _ module = (*pkcs11.Ctx)(nil)

// loader loads the module in a file. It does not initialize it.
type loader func(file string) (module, error)

func loadModule(file string) (module, error) {
	c := pkcs11.New(file)
	if c == nil {
		return nil, errors.New("it is not a PKCS #11 module that can be loaded here (a shared library of this architecture with C_GetFunctionList)")
	}
	return c, nil
}

// sharedModule is a module that is in use. C_Initialize is once per process and
// module (PKCS #11, "C_Initialize"), however many stores there are.
type sharedModule struct {
	module
	file  string // the real path
	users int    // guarded by modules

	// starting is held while the module is loaded or ended, which may hang. It
	// guards module and loaded.
	starting sync.Mutex
	loaded   bool

	ours atomic.Bool  // C_Finalize is for who has called C_Initialize
	up   atomic.Int32 // sessions there are, with all its tokens

	// A call holds calls for reading. It is held for writing while the module
	// is not initialized, and only tried for: a call may hang.
	calls sync.RWMutex
}

// modules are those of the process, by real path. The map is the process's
// because C_Initialize is.
var modules = struct {
	sync.Mutex
	byFile map[string]*sharedModule
}{byFile: make(map[string]*sharedModule)}

// checkPath refuses what others could have put in the place of a module, which is
// code in the process with the keys. Tests replace it in user name spaces, where
// nothing belongs to root.
var checkPath = guarded.CheckPath

// acquireModule loads and initializes a module, or finds it loaded.
func acquireModule(file string, load loader) (*sharedModule, error) {
	file, err := checkPath(file)
	if err != nil {
		return nil, err
	}
	modules.Lock()
	m := modules.byFile[file]
	if m == nil {
		m = &sharedModule{file: file}
		modules.byFile[file] = m
	}
	m.users++
	modules.Unlock()

	m.starting.Lock()
	defer m.starting.Unlock()
	if m.loaded {
		return m, nil
	}
	if err := m.start(load); err != nil {
		m.last()
		m.tidy()
		return nil, err
	}
	m.loaded = true
	return m, nil
}

func (m *sharedModule) start(load loader) error {
	raw, err := load(m.file)
	if err != nil {
		return err
	}
	m.module = raw
	if err := m.initialize(); err != nil {
		raw.Destroy()
		return fmt.Errorf("C_Initialize: %w", err)
	}
	return nil
}

func (m *sharedModule) initialize() error {
	err := m.Initialize()
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return nil // by another library in this process
	}
	if err == nil {
		m.ours.Store(true)
	}
	return err
}

// restart ends the module and starts it again, unless somebody has a session.
func (m *sharedModule) restart() error {
	if !m.calls.TryLock() {
		return errors.New("a call to it does not return")
	}
	defer m.calls.Unlock()
	if m.up.Load() > 0 {
		return errors.New("it works for another token")
	}
	if !m.ours.Load() {
		return errors.New("another library has started it")
	}
	_ = m.Finalize() // An error says that there is nothing to end.
	return m.initialize()
}

// release undoes acquireModule. The last user ends the module, once no call is
// in it any more. If that does not come about before ctx ends, it stays loaded:
// its code must not be taken from under a thread.
func (m *sharedModule) release(ctx context.Context) error {
	if m.leave() {
		return nil
	}
	for !m.calls.TryLock() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: a call to the module does not return: it stays loaded", m.file)
		}
	}
	return within(ctx, m.end)
}

// end ends the module for good, unless somebody has come meanwhile. The caller
// has locked calls, which it unlocks.
func (m *sharedModule) end() error {
	defer m.calls.Unlock()
	m.starting.Lock()
	defer m.starting.Unlock()
	if !m.last() {
		return nil
	}
	// Who comes now finds it in the map, waits for starting, and loads it anew.
	m.loaded = false
	defer m.tidy()
	if m.ours.Swap(false) {
		if err := m.Finalize(); err != nil {
			return fmt.Errorf("%s: C_Finalize: %w", m.file, err)
		}
	}
	m.Destroy()
	return nil
}

// last takes one from the users, and reports whether nobody is left.
func (m *sharedModule) last() bool {
	modules.Lock()
	defer modules.Unlock()
	m.users--
	return m.users == 0
}

// tidy forgets a module that has ended and that nobody waits for.
func (m *sharedModule) tidy() {
	modules.Lock()
	defer modules.Unlock()
	if m.users == 0 {
		delete(modules.byFile, m.file)
	}
}

// leave takes one from the users, unless it is the last.
func (m *sharedModule) leave() bool {
	modules.Lock()
	defer modules.Unlock()
	if m.users == 1 {
		return false
	}
	m.users--
	return true
}
