//! A chat template, rendered with a plain conversation.
#![no_main]

use halyard_text::{ChatInput, ChatTemplate, SpecialTokens};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(init: halyard_fuzz::let_panics_be_caught(), |source: &str| {
    let special = SpecialTokens {
        bos_token: Some("<s>".to_owned()),
        eos_token: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    let template = ChatTemplate::new(source.to_owned().into(), &special);
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": " Hello "}
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let input = ChatInput::new(&messages);
    let _ = template.render(&input);
    let with_tools = ChatInput { tools: Some(&tools), add_generation_prompt: false, continue_final_message: true, ..input };
    let _ = template.render(&with_tools);
});
