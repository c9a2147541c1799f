//! Tests of the engine, in one binary so that candle is linked once.
mod checkpoint;
mod hub;
