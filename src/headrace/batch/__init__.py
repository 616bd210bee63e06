"""Many calls in one: `batch` answers some together, `jobs` works through thousands."""
