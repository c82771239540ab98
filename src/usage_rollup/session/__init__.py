"""One pinned session: how it is opened, what it may wait for, who is in its way.

May import errors, contract, logs and revisions; knows no table of the product.
"""
