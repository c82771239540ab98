"""One pinned session: how it is opened, what it may wait for, who is in its way.

May import what lies on the ground. Of the product's tables it knows only whose they are.
"""
