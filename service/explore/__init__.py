"""What is computed of a store, an image or a sweep: functions that know nothing of HTTP."""
