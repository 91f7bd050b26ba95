"""What structured directions of zeroth-order training buy, and the published slips."""
