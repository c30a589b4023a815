"""The deep linear network of §3: its problems, Douglas–Rachford splitting and gradient descent."""
