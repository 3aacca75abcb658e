"""Scripts that measure and compare; they use the library, which never imports them."""
