"""How long a test waits for what must come."""

# Far beyond anything a test waits for, on however loaded a machine; only a broken one gets there.
DEADLINE_S = 240.0
