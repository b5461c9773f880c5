"""From rewards to the gradient of the loss with respect to each token: advantages, surrogates, corrections."""
