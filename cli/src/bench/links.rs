//! Links of running nodes, shaped anew through their admin faces, and put back as they were.

use anyhow::{Context, bail};
use node::link::Link;

/// The prefill nodes' links before anything was changed.
#[derive(Debug)]
pub(crate) struct Links {
    http: reqwest::Client,
    before: Vec<(String, Link)>,
}

impl Links {
    /// Finds the nodes at `addresses`, each `HOST:PORT`; every address behind a name is a node.
    pub(crate) async fn find(addresses: &[String]) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let mut before = Vec::new();
        for address in addresses {
            let found = tokio::net::lookup_host(address).await;
            for node in
                found.with_context(|| format!("--link-admin {address} is no HOST:PORT that resolves"))?
            {
                let url = format!("http://{node}/link");
                let answer =
                    http.get(&url).send().await.with_context(|| format!("no admin face at {url}"))?;
                before.push((url, answer.json().await?));
            }
        }
        Ok(Self { http, before })
    }

    /// Shapes all of them to `gbps`; 0 is unshaped.
    pub(crate) async fn shape(&self, gbps: f64) -> anyhow::Result<()> {
        for (url, _) in &self.before {
            self.put(url, Link { gbps }).await?;
        }
        Ok(())
    }

    /// Makes them what they were.
    pub(crate) async fn restore(&self) -> anyhow::Result<()> {
        for (url, link) in &self.before {
            self.put(url, *link).await?;
        }
        Ok(())
    }

    async fn put(&self, url: &str, link: Link) -> anyhow::Result<()> {
        let answer = self.http.put(url).json(&link).send().await?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => bail!("{url} answered {status}; start the node with --link-admin"),
        }
    }
}
