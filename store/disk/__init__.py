"""Files and object storage: whole writes, digests, locks, bounded reads."""
