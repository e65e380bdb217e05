"""Results of the code as it stood on 1 December 2026, before the rooms were rebuilt: nothing may move them."""
