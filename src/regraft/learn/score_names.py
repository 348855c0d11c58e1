"""What transferability scores are called. Needs no torch."""

LOGME, H_SCORE, TRANSRATE, LEEP, NCE, PROBE = "LogME", "H-score", "TransRate", "LEEP", "NCE", "ridge probe"
