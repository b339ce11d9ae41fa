//! A conversation to the text that the model was trained on: the model directory's own chat template (Jinja, as
//! Hugging Face writes it), rendered by minijinja. Tools and images are not handed to the template.
//!
//! The text names its special tokens, so [`Tokenizer::encode`](crate::Tokenizer::encode) turns it into ids as it is. A
//! message that contains such a name is not told apart from the template's own, as everywhere else.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::tokenizer::{LoadError, NamedToken, read_json};

/// Where newer model directories keep the template.
const TEMPLATE_FILE: &str = "chat_template.jinja";
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A model's chat template, compiled.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// A conversation that the template does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model's chat template refuses these messages: {reason}")]
pub struct RenderError {
    /// What the template engine said.
    pub reason: String,
}

/// The part of `tokenizer_config.json` that matters here.
#[derive(Deserialize)]
struct TemplateConfig {
    chat_template: Option<Templates>,
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
}

/// One template, or several of which the one named `default` is for plain conversations.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// Reads the template of a model directory: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`; none
    /// where the model has none, as base models do.
    ///
    /// # Errors
    /// When a file cannot be read, or holds no template.
    pub fn load(dir: &Path) -> Result<Option<Self>, LoadError> {
        let (config_path, file) = (dir.join("tokenizer_config.json"), dir.join(TEMPLATE_FILE));
        let config: TemplateConfig = read_json(&config_path)?;
        let unusable = |path: &Path, reason: String| LoadError::Content { path: path.into(), reason };
        let (source, path) = if file.exists() {
            let source = std::fs::read_to_string(&file)
                .map_err(|source| LoadError::Read { path: file.clone(), source })?;
            (Some(source), &file)
        } else {
            (config.chat_template.and_then(Templates::plain), &config_path)
        };
        let Some(source) = source else { return Ok(None) };
        let name = |token: Option<NamedToken>| token.map(NamedToken::into_name).unwrap_or_default();
        Self::new(source, name(config.bos_token), name(config.eos_token))
            .map(Some)
            .map_err(|error| unusable(path, format!("its chat template cannot be read: {error:#}")))
    }

    fn new(source: String, bos_token: String, eos_token: String) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        // The settings of Hugging Face's own renderer. Its `strftime_now` is left out: templates that know it fall back
        // to a fixed date, and a prompt should not change overnight.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_template_owned(NAME, source)?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The conversation as one text. With `add_generation_prompt` it ends where the assistant's next turn begins.
    ///
    /// # Errors
    /// When the template refuses the messages, for instance the order of their roles.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, RenderError> {
        let (bos_token, eos_token) = (&self.bos_token, &self.eos_token);
        let messages = Serde(messages);
        self.environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! { messages, add_generation_prompt, bos_token, eos_token })
            })
            .map_err(|error| RenderError {
                reason: error.detail().map_or_else(|| error.to_string(), str::to_owned),
            })
    }
}

impl Templates {
    fn plain(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(all) => all.into_iter().find(|one| one.name == "default").map(|one| one.template),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of Llama 3.2's template: a date, Python's string methods, an error for what it does not take.
    const LLAMA: &str = "{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date = strftime_now('%d %b %Y') %}
{%- else %}
    {%- set date = '26 Jul 2024' %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception('only user and assistant may speak, not ' + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
";

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into() }
    }

    fn llama() -> ChatTemplate {
        ChatTemplate::new(LLAMA.into(), "<|begin_of_text|>".into(), "<|eot_id|>".into()).unwrap()
    }

    #[test]
    fn a_template_of_llamas_shape_renders_as_hugging_face_does() {
        let messages = [message("system", " Be brief. "), message("user", "Hello\n")];
        assert_eq!(
            llama().render(&messages, true).unwrap(),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.\
             <|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        assert!(llama().render(&messages, false).unwrap().ends_with("Hello<|eot_id|>"));
    }

    #[test]
    fn what_the_template_refuses_is_said_in_its_own_words() {
        let error = llama().render(&[message("user", "a"), message("robot", "b")], true).unwrap_err();
        assert_eq!(error.reason, "only user and assistant may speak, not robot");
    }

    #[test]
    fn the_embedded_models_template_gives_one_token_per_special_name() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
        let text =
            ChatTemplate::load(&dir).unwrap().unwrap().render(&[message("user", "Hello")], true).unwrap();
        let tokenizer = crate::Tokenizer::load(&dir).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(ids.iter().filter(|id| Some(**id) == tokenizer.begin_of_text()).count(), 1);
        assert_eq!(tokenizer.decode(&ids), "user\n\nHelloassistant\n\n");
    }

    #[test]
    fn of_several_templates_the_default_one_is_taken() {
        let json = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        let config: TemplateConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.chat_template.and_then(Templates::plain).unwrap(), "d");
    }
}
