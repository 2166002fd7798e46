//go:build cgo

package hsm

import (
	"slices"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// fault is what happens to calls of a module.
type fault struct {
	calls  []string // "Sign"; nil for all of them
	err    error
	after  bool          // it fails after it took effect
	hang   chan struct{} // it does not return until this is closed
	times  int           // how often; 0 for always
	module string        // the file of the module; empty for all
}

// faults stands between the store and real modules.
type faults struct {
	mu     sync.Mutex
	active []*fault
	count  map[string]int
	offset uint // of all slot numbers
	real   []module
}

func (f *faults) load(file string) (module, error) {
	m, err := loadModule(file)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.real = append(f.real, m)
	return &faultyModule{module: m, f: f, file: file}, nil
}

// set replaces all faults.
func (f *faults) set(active ...*fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = active
}

func (f *faults) counted(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[call]
}

func (f *faults) next(file, call string) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == nil {
		f.count = make(map[string]int)
	}
	f.count[call]++
	for i, x := range f.active {
		if x.module != "" && x.module != file || x.calls != nil && !slices.Contains(x.calls, call) {
			continue
		}
		if x.times > 0 {
			if x.times--; x.times == 0 {
				f.active = slices.Delete(slices.Clone(f.active), i, i+1)
			}
		}
		return x
	}
	return nil
}

// faultyModule is a real module with faults in front of it.
type faultyModule struct {
	module
	f    *faults
	file string
}

func (m *faultyModule) do(call string, really func() error) error {
	x := m.f.next(m.file, call)
	switch {
	case x == nil:
		return really()
	case x.hang != nil:
		<-x.hang
		return really()
	case x.after:
		_ = really()
	}
	return x.err
}

func (m *faultyModule) off() uint {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	return m.f.offset
}

// slot undoes the offset. One that is stale is in no slot.
func (m *faultyModule) slot(n uint) uint {
	if off := m.off(); n >= off {
		return n - off
	}
	return 1 << 40
}

func (m *faultyModule) Initialize(o ...pkcs11.InitializeOption) error {
	return m.do("Initialize", func() error { return m.module.Initialize(o...) })
}

func (m *faultyModule) Finalize() error { return m.do("Finalize", m.module.Finalize) }

func (m *faultyModule) GetSlotList(present bool) (slots []uint, err error) {
	err = m.do("GetSlotList", func() (err error) { slots, err = m.module.GetSlotList(present); return err })
	for i := range slots {
		slots[i] += m.off()
	}
	return slots, err
}

func (m *faultyModule) GetTokenInfo(slot uint) (info pkcs11.TokenInfo, err error) {
	err = m.do("GetTokenInfo", func() (err error) { info, err = m.module.GetTokenInfo(m.slot(slot)); return err })
	return info, err
}

func (m *faultyModule) GetMechanismInfo(slot uint, mech []*pkcs11.Mechanism) (info pkcs11.MechanismInfo, err error) {
	err = m.do("GetMechanismInfo", func() (err error) { info, err = m.module.GetMechanismInfo(m.slot(slot), mech); return err })
	return info, err
}

func (m *faultyModule) OpenSession(slot, flags uint) (h pkcs11.SessionHandle, err error) {
	err = m.do("OpenSession", func() (err error) { h, err = m.module.OpenSession(m.slot(slot), flags); return err })
	return h, err
}

func (m *faultyModule) CloseSession(h pkcs11.SessionHandle) error {
	return m.do("CloseSession", func() error { return m.module.CloseSession(h) })
}

func (m *faultyModule) CloseAllSessions(slot uint) error {
	return m.do("CloseAllSessions", func() error { return m.module.CloseAllSessions(m.slot(slot)) })
}

func (m *faultyModule) GetSessionInfo(h pkcs11.SessionHandle) (info pkcs11.SessionInfo, err error) {
	err = m.do("GetSessionInfo", func() (err error) { info, err = m.module.GetSessionInfo(h); return err })
	return info, err
}

func (m *faultyModule) Login(h pkcs11.SessionHandle, user uint, pin string) error {
	return m.do("Login", func() error { return m.module.Login(h, user, pin) })
}

func (m *faultyModule) FindObjectsInit(h pkcs11.SessionHandle, a []*pkcs11.Attribute) error {
	return m.do("FindObjectsInit", func() error { return m.module.FindObjectsInit(h, a) })
}

func (m *faultyModule) FindObjects(h pkcs11.SessionHandle, most int) (found []pkcs11.ObjectHandle, more bool, err error) {
	err = m.do("FindObjects", func() (err error) { found, more, err = m.module.FindObjects(h, most); return err })
	return found, more, err
}

func (m *faultyModule) FindObjectsFinal(h pkcs11.SessionHandle) error {
	return m.do("FindObjectsFinal", func() error { return m.module.FindObjectsFinal(h) })
}

func (m *faultyModule) GetAttributeValue(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) (v []*pkcs11.Attribute, err error) {
	err = m.do("GetAttributeValue", func() (err error) { v, err = m.module.GetAttributeValue(h, o, a); return err })
	return v, err
}

func (m *faultyModule) SignInit(h pkcs11.SessionHandle, mech []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return m.do("SignInit", func() error { return m.module.SignInit(h, mech, o) })
}

func (m *faultyModule) Sign(h pkcs11.SessionHandle, data []byte) (sig []byte, err error) {
	err = m.do("Sign", func() (err error) { sig, err = m.module.Sign(h, data); return err })
	return sig, err
}

func (m *faultyModule) DecryptInit(h pkcs11.SessionHandle, mech []*pkcs11.Mechanism, o pkcs11.ObjectHandle) error {
	return m.do("DecryptInit", func() error { return m.module.DecryptInit(h, mech, o) })
}

func (m *faultyModule) Decrypt(h pkcs11.SessionHandle, data []byte) (out []byte, err error) {
	err = m.do("Decrypt", func() (err error) { out, err = m.module.Decrypt(h, data); return err })
	return out, err
}

// openFaulty opens a store behind faults, which are taken away before it is
// closed.
func openFaulty(t testing.TB, cfg Config) (*Store, *faults) {
	t.Helper()
	f := new(faults)
	s := openStoreWith(t, cfg, f.load)
	t.Cleanup(func() { f.set() })
	return s, f
}
