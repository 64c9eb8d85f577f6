"""Who is asking: issuers and their keys, API keys, where credentials stand."""
