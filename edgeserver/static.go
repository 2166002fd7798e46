package edgeserver

import (
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
)

// folder serves the files of one folder.
type folder struct {
	root  *os.Root // no name and no symbolic link leads out of it
	files http.Handler
}

// openFolder opens the folder dir.
func openFolder(dir string) (*folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &folder{root: root, files: http.FileServerFS(publicFS{root.FS()})}, nil
}

// Close closes the folder.
func (f *folder) Close() error { return f.root.Close() }

// ServeHTTP serves a file, or a folder's index.html.
func (f *folder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, r, http.StatusMethodNotAllowed, "A file can only be read.")
		return
	}
	f.files.ServeHTTP(w, r)
}

// publicFS is what a visitor sees of a file system: files, and folders that
// have an index.html. What begins with a dot, is a device or a pipe, or would
// be a listing, is not there.
type publicFS struct{ fs.FS }

// Open opens a file or a folder with an index.html.
func (p publicFS) Open(name string) (fs.File, error) {
	if !p.public(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return p.FS.Open(name)
}

// public reports whether a visitor may open name. It looks before it opens,
// since opening a named pipe waits for its other end. A link that leads out of
// the folder is, like everything that cannot be looked at, not there.
func (p publicFS) public(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(element, ".") && element != "." {
			return false
		}
	}
	info, err := fs.Stat(p.FS, name)
	if err != nil {
		return false
	}
	if info.IsDir() {
		index, err := fs.Stat(p.FS, path.Join(name, "index.html"))
		return err == nil && index.Mode().IsRegular()
	}
	return info.Mode().IsRegular()
}
