//! Both commands, argv to PNG, on the small checkpoints that come with the program.
