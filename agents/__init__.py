"""Who looks: cases, outcomes, encoder, agents and their calibration."""
