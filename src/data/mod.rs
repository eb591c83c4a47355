//! Calibration and evaluation data: image folders, arrays, preprocessing.
