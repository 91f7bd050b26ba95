"""Problems with an exact gradient that are no feed-forward networks, and their papers' estimators as draws of it."""
