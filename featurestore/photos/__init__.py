"""From a CSV and photographs to pixels: catalog, labels, sites, decoding, views."""
