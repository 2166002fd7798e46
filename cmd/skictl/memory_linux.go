package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// searchMemory looks for the needles in everything that a process has mapped
// and returns the names of those it finds. The error says that the system does
// not let us look.
func searchMemory(pid int, needles map[string][]byte) ([]string, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()

	found := map[string]bool{}
	var searched int64
	for regions := bufio.NewScanner(maps); regions.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(regions.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' ||
			strings.Contains(regions.Text(), "[v") { // vvar and vsyscall are the kernel's
			continue
		}
		n, err := searchRegion(mem, from, to, needles, found)
		if err != nil {
			return nil, err
		}
		searched += n
	}
	if searched == 0 {
		return nil, errors.New("nothing of its memory could be read")
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	return names, nil
}

// searchRegion reads a region in pieces that overlap by the longest needle.
func searchRegion(mem *os.File, from, to int64, needles map[string][]byte, found map[string]bool) (int64, error) {
	const piece = 1 << 20
	overlap := 0
	for _, n := range needles {
		overlap = max(overlap, len(n)-1)
	}
	var searched int64
	buf := make([]byte, piece)
	defer clear(buf)
	for at := from; at < to; at += int64(piece - overlap) {
		n, err := mem.ReadAt(buf[:min(piece, to-at)], at)
		if errors.Is(err, os.ErrPermission) {
			return searched, err
		}
		for name, needle := range needles {
			if bytes.Contains(buf[:n], needle) {
				found[name] = true
			}
		}
		searched += int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			break // a region that is mapped but cannot be read
		}
	}
	return searched, nil
}
