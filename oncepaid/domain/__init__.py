"""The vocabulary and the rules. Pure: nothing here awaits, logs or reads a clock."""
