package keyserver

import "time"

// AuditConfig says where the audit log goes.
type AuditConfig struct {
	// File is the file that records are appended to. Default "-", which is
	// standard output.
	File string `yaml:"file"`
	// Required makes the answer 'unspecified error' where a record cannot be
	// written. Default false. A record that waits, as for a disk that hangs or
	// a reader of standard output that does not read, keeps its answer waiting
	// in both cases.
	Required bool `yaml:"required"`
	// MaxSizeMiB is the size, in 2^20 bytes, at which a new file is begun; see
	// AuditOptions.MaxSize. Default 0: never.
	MaxSizeMiB uint32 `yaml:"max_size_mib"`
	// Sync is AuditOptions.Sync. Default false.
	Sync bool `yaml:"sync"`
	// Key is the PEM file with the Ed25519 key that signs checkpoints, readable
	// by its owner alone. Default none: nothing is signed.
	Key string `yaml:"key"`
	// ReserveMiB is how much of the file's disk, in 2^20 bytes, is kept for the
	// records of requests that are answered with an output. Default 64; 0 means
	// none.
	ReserveMiB uint32 `yaml:"reserve_mib"`
	// Witness is a file on another mount that how far the log goes is appended to,
	// with each CheckpointInterval; see AuditOptions.Witness. It needs Key, and
	// Config.State. Default none.
	Witness string `yaml:"witness"`
	// CheckpointRecords is after how many records there is a checkpoint.
	// Default 1000.
	CheckpointRecords uint32 `yaml:"checkpoint_records"`
	// CheckpointInterval is how long a record waits for a checkpoint at most.
	// Default 1m.
	CheckpointInterval Duration `yaml:"checkpoint_interval"`
}

// AuditOptions returns what OpenAuditLog takes, without Suspensions and Logger.
// It reads the key.
func (c *Config) AuditOptions() (AuditOptions, error) {
	o, err := c.Audit.options()
	if c.State != "" {
		o.Tip = c.State + auditTipSuffix
	}
	return o, err
}

func (c *AuditConfig) options() (AuditOptions, error) {
	o := AuditOptions{
		File:               c.File,
		MaxSize:            int64(c.MaxSizeMiB) << 20,
		Sync:               c.Sync,
		Reserve:            int64(c.ReserveMiB) << 20,
		Required:           c.Required,
		Witness:            c.Witness,
		CheckpointRecords:  int(c.CheckpointRecords),
		CheckpointInterval: time.Duration(c.CheckpointInterval),
	}
	var err error
	if c.Key != "" {
		o.Key, err = LoadAuditKey(c.Key)
	}
	return o, err
}
