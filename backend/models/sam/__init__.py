"""SAM, MobileSAM and SAM 2 as segmenters."""
