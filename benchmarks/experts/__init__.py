"""The experts behind the bundled demonstrations: their training, scores, pictures and rollouts."""
