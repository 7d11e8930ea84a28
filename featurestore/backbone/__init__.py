"""From pixels to tokens: the vision transformer, its weights, and sums over tokens."""
