"""What touches the operating system: durable writes, maps, signals, threads, YAML, URLs."""
