//! Tensors with their numbers.

use candle_core::{DeviceLocation, Tensor};

use crate::notebook::Rich;
use crate::notebook::html::{MONO, escape, frame, heading, thousands};

impl Rich for Tensor {
    /// Returns the numbers as PyTorch prints them, those in the middle of a large tensor left out, below shape, type
    /// and device.
    fn to_html(&self) -> String {
        let shape: Vec<String> = self.dims().iter().map(|&dim| thousands(dim)).collect();
        let shape = match shape.is_empty() {
            true => "a single number".to_owned(),
            false => shape.join(" × "),
        };
        let device = match self.device().location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        };
        let aside = format!("{shape}, {}, {device}", self.dtype().as_str());
        frame(&format!(
            "{}<pre style=\"white-space:pre;margin:0;padding:0;background:none;color:inherit;font-size:12px;line-height:1.35;{MONO}\">{}</pre>",
            heading("tensor", &aside),
            escape(&numbers(self))
        ))
    }

    fn to_text(&self) -> String {
        format!("{self}")
    }
}

/// Returns the numbers alone: what candle prints, without its last line, which names type and shape.
fn numbers(tensor: &Tensor) -> String {
    let text = format!("{tensor}");
    match text.rsplit_once("\nTensor[") {
        Some((numbers, _)) => numbers.to_owned(),
        None => "no elements".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result};

    use super::*;

    #[test]
    fn a_tensor_displays_its_values_and_omits_the_middle() -> Result<()> {
        let small = Tensor::new(&[[1.5f32, -2.0], [0.25, f32::NAN]], &Device::Cpu)?;
        let html = small.to_html();
        for shown in ["2 × 2, f32, cpu", "1.5000", "-2.0000", "0.2500", "NaN"] {
            assert!(html.contains(shown), "{shown} in {html}");
        }
        let large = Tensor::arange(0u32, 200 * 300, &Device::Cpu)?.reshape((200, 300))?;
        let html = large.to_html();
        assert!(html.contains("59999") && html.contains("..."), "{html}");
        assert!(html.len() < 2_000, "{html}");
        assert!(large.to_text().ends_with("Tensor[[200, 300], u32]"));
        Ok(())
    }

    #[test]
    fn tensors_of_every_type_and_empty_ones_are_displayed() -> Result<()> {
        for kind in [DType::U8, DType::I64, DType::BF16, DType::F16, DType::F64] {
            let ones = Tensor::ones((3,), kind, &Device::Cpu)?;
            assert!(ones.to_html().contains('1'), "{kind:?}");
        }
        let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?;
        assert!(none.to_html().contains("0 × 4"));
        let one = Tensor::new(7u32, &Device::Cpu)?.to_html();
        assert!(
            one.contains("a single number") && one.contains('7'),
            "{one}"
        );
        Ok(())
    }
}
