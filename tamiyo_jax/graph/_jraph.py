"""What is used of jraph: the graph's container, and padding to a static size.

jraph is archived upstream, so no other module imports it.
"""

from jraph import GraphsTuple, pad_with_graphs

__all__ = ["GraphsTuple", "pad_with_graphs"]
