"""The mathematics: types, patch grid, matching, prompts, masks. Knows torch and numpy only."""
