"""The feature cache as a Zarr hierarchy: its headers, layout, chunks and shards, and how it is verified and merged."""
