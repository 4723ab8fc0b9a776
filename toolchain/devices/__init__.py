"""What a bundle can run on beside this computer's own processor: one module per kind of device."""
