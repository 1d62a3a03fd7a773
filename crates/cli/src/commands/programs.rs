//! The three programs as clap defines them, for what is made from the definitions: completions and manual pages.
use crate::{bitdelta, hanzo_node, llamafactory};
use clap::{Command, CommandFactory};

/// A program of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Program {
    /// bitdelta
    Bitdelta,
    /// hanzo-node
    HanzoNode,
    /// llamafactory-cli
    #[value(name = "llamafactory-cli")]
    Llamafactory,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bitdelta, Self::HanzoNode, Self::Llamafactory];

    /// Its name in a shell.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitdelta => "bitdelta",
            Self::HanzoNode => "hanzo-node",
            Self::Llamafactory => "llamafactory-cli",
        }
    }
}

/// Its commands and options.
pub fn definition(program: Program) -> Command {
    match program {
        Program::Bitdelta => bitdelta::Cli::command(),
        Program::HanzoNode => hanzo_node::Cli::command(),
        Program::Llamafactory => llamafactory::definition(),
    }
}
