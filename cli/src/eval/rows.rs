//! Files to evaluate on: JSON lines, one prompt or one text each. A bad line is named with what belongs there.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use openai::ChatMessage;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const PROMPT_ROW: &str =
    r#"{"prompt": TEXT, "answer": TEXT} or {"messages": [{"role": TEXT, "content": TEXT}], "answer": TEXT}"#;
const TEXT_ROW: &str = r#"{"text": TEXT}"#;

/// A prompt with the answer that counts as right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptRow {
    /// Line of the file, for messages.
    pub line: usize,
    /// What is asked.
    pub input: Input,
    /// What a right continuation says.
    pub answer: String,
    /// Asked afterwards, on the same cache.
    pub later: Vec<Later>,
}

/// A prompt's two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Text to be continued; the answer ends at the newline.
    Text(String),
    /// A conversation; the answer is the assistant's turn.
    Chat(Vec<ChatMessage>),
}

/// A question asked after the prompt's own was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// What follows the right answer and a newline.
    pub text: String,
    /// What a right continuation says.
    pub answer: String,
}

#[derive(Deserialize)]
struct PromptLine {
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    answer: String,
    #[serde(default)]
    later: Vec<Later>,
}

#[derive(Deserialize)]
struct TextLine {
    text: String,
}

/// The first `limit` prompts of a file.
///
/// # Errors
/// For a file that cannot be read, holds no prompt, or a line that is none.
pub fn read_prompts(path: &Path, limit: usize) -> anyhow::Result<Vec<PromptRow>> {
    read(path, limit, PROMPT_ROW, |line, row: PromptLine| {
        let input = match (row.prompt, row.messages) {
            (Some(text), None) if !text.is_empty() => Input::Text(text),
            (None, Some(messages)) if !messages.is_empty() => Input::Chat(messages),
            _ => bail!("a row has either a prompt or messages, which are not empty"),
        };
        let answers = std::iter::once(&row.answer).chain(row.later.iter().map(|later| &later.answer));
        for answer in answers {
            ensure!(
                !answer.is_empty() && answer.trim() == answer,
                "the answer {answer:?} is empty or begins or ends with a space; answers are compared trimmed"
            );
        }
        ensure!(
            row.later.is_empty() || matches!(input, Input::Text(_)),
            "`later` questions continue a prompt; a row with messages cannot have them"
        );
        Ok(PromptRow { line, input, answer: row.answer, later: row.later })
    })
}

/// All texts of a file, in its order.
///
/// # Errors
/// For a file that cannot be read, holds no text, or a line that is none.
pub fn read_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    read(path, usize::MAX, TEXT_ROW, |_, row: TextLine| Ok(row.text))
}

fn read<L: DeserializeOwned, R>(
    path: &Path,
    limit: usize,
    expected: &str,
    row: impl Fn(usize, L) -> anyhow::Result<R>,
) -> anyhow::Result<Vec<R>> {
    let file = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.take(limit).map(|(number, line)| {
        let parsed = serde_json::from_str(line).map_err(|error| {
            let reason = error.to_string().replace(" at line 1 column ", ", column ");
            anyhow::anyhow!("{reason}; expected {expected}")
        });
        parsed.and_then(|parsed| row(number, parsed)).with_context(|| format!("{file}, line {number}"))
    });
    let rows = rows.collect::<anyhow::Result<Vec<R>>>()?;
    ensure!(!rows.is_empty(), "{file} holds no rows; expected lines of {expected}");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(text: &str) -> anyhow::Result<Vec<PromptRow>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        read_prompts(&path, usize::MAX)
    }

    #[test]
    fn rows_of_both_forms_are_read_and_other_fields_ignored() {
        let rows = prompts(
            "{\"id\": 7, \"prompt\": \"a\", \"answer\": \"b\", \"later\": [{\"text\": \"c\", \"answer\": \"d\"}]}\n\n\
             {\"messages\": [{\"role\": \"user\", \"content\": \"e\"}], \"answer\": \"f\", \"tokens\": 3}\n",
        )
        .unwrap();
        assert_eq!(rows[0].later, [Later { text: "c".into(), answer: "d".into() }]);
        assert_eq!((rows[1].line, rows[1].answer.as_str()), (3, "f"));
        assert_eq!(
            rows[1].input,
            Input::Chat(vec![ChatMessage { role: "user".into(), content: "e".into() }])
        );
    }

    #[test]
    fn a_bad_line_is_named_with_what_belongs_there() {
        let good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
        let cases = [
            ("{\"prompt\": \"a\"}", "missing field `answer`"),
            ("{\"prompt\": \"a\", ", "column"),
            ("{\"answer\": \"b\"}", "either a prompt or messages"),
            ("{\"prompt\": \"a\", \"messages\": [], \"answer\": \"b\"}", "either a prompt or messages"),
            ("{\"prompt\": \"a\", \"answer\": \" b\"}", "compared trimmed"),
            ("[1]", "expected {\"prompt\""),
        ];
        for (bad, said) in cases {
            let error = format!("{:#}", prompts(&format!("{good}{bad}\n")).unwrap_err());
            assert!(error.contains("rows.jsonl, line 2: ") && error.contains(said), "{bad}: {error}");
        }
        let error = prompts("\n").unwrap_err().to_string();
        assert!(error.contains("holds no rows"), "{error}");
    }
}
