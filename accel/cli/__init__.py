"""The door: what `accel` answers without running anything (help, list, completion), and how words become a study."""
