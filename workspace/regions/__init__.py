"""Working directories of regions: state-wide retrieval, its index, and its fusion with a zoom."""
