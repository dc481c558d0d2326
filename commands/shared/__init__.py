"""What commands have in common: options, output, errors, and settings of the process."""
