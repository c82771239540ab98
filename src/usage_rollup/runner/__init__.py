"""From one revision to the next: adopt, lock, apply, record; the way back, and scripts of all that.

May import session and what lies below it. Knows nothing of the hourly rollup: the two meet in 103's
`before_upgrade`.
"""
