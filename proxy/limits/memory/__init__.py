"""The limits store of one worker, in its memory."""
