"""What this project is called where packages are installed.

PyPI's `biomass` is another project's.
"""

DISTRIBUTION = "biomass-tokens"
