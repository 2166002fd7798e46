package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is what a process has spent and holds.
type usage struct {
	cpu      time.Duration // user and system
	resident int64         // KiB
}

// ticksPerSecond is that of /proc/PID/stat: USER_HZ, which is 100 on every
// architecture that Go runs on (proc(5)).
const ticksPerSecond = 100

// processUsage reads /proc.
func processUsage(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	// The second field is the name in parentheses, which may have anything in
	// it. utime and stime are the 14th and 15th, rss the 24th.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 22 {
		return usage{}, fmt.Errorf("/proc/%d/stat is not as in proc(5)", pid)
	}
	var numbers [3]int64
	for i, field := range []string{fields[11], fields[12], fields[21]} {
		if numbers[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return usage{}, err
		}
	}
	return usage{
		cpu:      time.Duration(numbers[0]+numbers[1]) * time.Second / ticksPerSecond,
		resident: numbers[2] * int64(os.Getpagesize()) / 1024,
	}, nil
}

// usageOf is processUsage of a process that has been found already, or of none.
func usageOf(pid int) usage {
	u, _ := processUsage(pid)
	return u
}

// until returns what was spent since u.
func (u usage) until(pid int, operations int64) (*benchServer, error) {
	now, err := processUsage(pid)
	if err != nil {
		return nil, fmt.Errorf("the key server has ended: %w", err)
	}
	s := &benchServer{ResidentBefore: u.resident, ResidentAfter: now.resident}
	if operations > 0 {
		s.CPU = float64((now.cpu - u.cpu).Microseconds()) / float64(operations)
	}
	return s, nil
}
