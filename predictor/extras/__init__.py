"""What can be added to predictions: intervals, blends, pictures, a report."""
