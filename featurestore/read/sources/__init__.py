"""Where a store's bytes come from: mapped files, files that are read, a server."""
