//! Keys and certificates of a bed: one authority, the API server's certificate, a client certificate per identity, the
//! key that signs ServiceAccount tokens. Made anew for every bed.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// Whom a kubeconfig makes its bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the kubeconfig file, without its ending.
    pub file: &'static str,
    user: &'static str,
    group: Option<&'static str>,
}

impl Identity {
    /// A ServiceAccount in the namespace `kube-system`: it has no certificate but a token of the API server's
    /// ([`crate::service_accounts`]).
    pub const fn service_account(name: &'static str) -> Self {
        Self { file: name, user: "", group: None }
    }
}

/// May do everything.
pub const ADMIN: Identity = Identity { file: "admin", user: "admin", group: Some("system:masters") };
/// As kube-controller-manager runs in a real cluster.
pub const CONTROLLER_MANAGER: Identity =
    Identity { file: "kube-controller-manager", user: "system:kube-controller-manager", group: None };
/// As kube-scheduler runs in a real cluster.
pub const SCHEDULER: Identity =
    Identity { file: "kube-scheduler", user: "system:kube-scheduler", group: None };
/// As kube-proxy runs in a real cluster: the built-in ClusterRole `system:node-proxier`, nothing else.
pub const PROXY: Identity = Identity { file: "kube-proxy", user: "system:kube-proxy", group: None };

/// The chart's ServiceAccount of the controller.
pub const CONTROLLER: Identity = Identity::service_account("fairlead-controller");
/// The chart's ServiceAccount of the controller in profile `shadow`.
pub const CONTROLLER_SHADOW: Identity = Identity::service_account("fairlead-shadow-controller");
/// The chart's ServiceAccount of the programmer.
pub const PROGRAMMER: Identity = Identity::service_account("fairlead-programmer");
/// The chart's ServiceAccount of the programmer in profile `shadow`.
pub const PROGRAMMER_SHADOW: Identity = Identity::service_account("fairlead-shadow-programmer");

/// May do nothing but what everybody may.
pub const NOBODY: Identity = Identity { file: "nobody", user: "nobody", group: None };

/// The files of a bed's keys and certificates.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    url: String,
    authority: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes all of them, for an API server at `server` (first) that is also known as `names`.
    pub fn make(dir: &Path, server: IpAddr, names: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("fairlead-bed", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let pki = Self { dir: dir.to_owned(), url: format!("https://{server}:6443"), authority, issuer };
        fs::write(pki.path("ca.crt"), &pki.authority)?;
        let tokens = KeyPair::generate()?;
        fs::write(pki.path("service-accounts.key"), tokens.serialize_pem())?;
        fs::write(pki.path("service-accounts.pub"), tokens.public_key_pem())?;

        let mut sans: Vec<SanType> =
            names.iter().chain([&server]).map(|ip| SanType::IpAddress(*ip)).collect();
        for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
            sans.push(SanType::DnsName(name.try_into()?));
        }
        let (certificate, key) = signed(&pki.issuer, named("kube-apiserver", None), sans)?;
        fs::write(pki.path("apiserver.crt"), certificate)?;
        fs::write(pki.path("apiserver.key"), key)?;

        for identity in [ADMIN, CONTROLLER_MANAGER, SCHEDULER, PROXY, NOBODY] {
            pki.add_certificate(identity.file, identity.user, identity.group, &[])?;
        }
        Ok(pki)
    }

    /// Makes a certificate for somebody who asks the API server, and who also answers at `addresses`: the files
    /// `<file>.crt` and `<file>.key`, and a kubeconfig with both.
    pub fn add_certificate(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        addresses: &[IpAddr],
    ) -> Result<PathBuf> {
        let sans = addresses.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        let (certificate, key) = signed(&self.issuer, named(user, group), sans)?;
        let user = json!({"client-certificate-data": base64(&certificate), "client-key-data": base64(&key)});
        fs::write(self.path(&format!("{file}.crt")), certificate)?;
        fs::write(self.path(&format!("{file}.key")), key)?;
        self.write_kubeconfig(file, &user)
    }

    /// A file by name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the kubeconfig of somebody with a token; returns its path.
    pub fn add_token(&self, file: &str, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig(file, &json!({"token": token}))
    }

    /// An identity's kubeconfig.
    pub fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.path(&format!("{}.kubeconfig", identity.file))
    }

    /// JSON is YAML, so every reader of kubeconfigs takes it.
    fn write_kubeconfig(&self, file: &str, user: &Value) -> Result<PathBuf> {
        let cluster = json!({"server": self.url, "certificate-authority-data": base64(&self.authority)});
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": cluster}],
            "users": [{"name": "bed", "user": user}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "bed"}}],
            "current-context": "bed",
        });
        let path = self.path(&format!("{file}.kubeconfig"));
        fs::write(&path, serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }
}

fn named(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn signed(
    issuer: &Issuer<'_, KeyPair>,
    name: DistinguishedName,
    sans: Vec<SanType>,
) -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer).context("signing a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn base64(text: &str) -> String {
    data_encoding::BASE64.encode(text.as_bytes())
}
