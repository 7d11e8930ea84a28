"""For people: pictures, neighbours, xarray, and the doctor."""
