"""The commands of `usage-rollup`, a module each: options in, one call, what is shown out."""
