//! The flag that says where the model runs.

use std::fmt;
use std::str::FromStr;

/// Where model and codec run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// In this process, on all cores.
    #[default]
    Cpu,
    /// On an NVIDIA GPU, by its number among those that CUDA shows.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = match text.split_once(':') {
            None if text == "cpu" => return Ok(Self::Cpu),
            None if text == "cuda" => Some(0),
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        number.map(Self::Cuda).ok_or_else(|| format!("`{text}` is no device; take cpu, cuda or cuda:N"))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_frameworks_name_them() {
        let parsed = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parsed("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(
            (parsed("cuda"), parsed("cuda:3")),
            (Ok(DeviceChoice::Cuda(0)), Ok(DeviceChoice::Cuda(3)))
        );
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"] {
            assert!(parsed(wrong).unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_understood() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Cuda(2)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }
}
