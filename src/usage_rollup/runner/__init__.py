"""From one revision to the next: adopt, lock, apply, record; the way back, and scripts of all that.

May import session and what lies below it. Of the hourly rollup it knows names, by which it tells where a
database stands; what fills it is met in 103's `before_upgrade`.
"""
