"""Pages that the proxy serves itself: each one document, made at start of files that stand together.

Style and scripts enter as files beside the document; what leaves is a `Page` with its fields: everything inline and
allowed by its digest, no other origin, no frame.
"""

from proxy.pages.page import Page

__all__ = ["Page"]
