package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/mimiktech/cluster"
)

// An apiObject is an object of the Kubernetes API.
type apiObject interface {
	metav1.Object
	OpenAPIModelName() string
}

// kinds returns functions that create an empty object, by its version and kind.
func kinds() map[string]func() apiObject {
	return map[string]func() apiObject{
		"v1 Namespace":                       func() apiObject { return new(corev1.Namespace) },
		"v1 Secret":                          func() apiObject { return new(corev1.Secret) },
		"v1 Service":                         func() apiObject { return new(corev1.Service) },
		"apps/v1 Deployment":                 func() apiObject { return new(appsv1.Deployment) },
		"policy/v1 PodDisruptionBudget":      func() apiObject { return new(policyv1.PodDisruptionBudget) },
		"networking.k8s.io/v1 NetworkPolicy": func() apiObject { return new(networkingv1.NetworkPolicy) },
	}
}

// decode decodes the objects of a file as strictly as the API server: no unknown field, no field
// twice, no value of a wrong type.
func decode(t *testing.T, text string) (objects []apiObject, err error) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		var header struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(document), &header); err != nil {
			return nil, err
		}
		data, err := yaml.YAMLToJSONStrict([]byte(document))
		if err != nil {
			return nil, err
		}
		newObject := kinds()[header.APIVersion+" "+header.Kind]
		if newObject == nil {
			return nil, fmt.Errorf("unknown object %s %s", header.APIVersion, header.Kind)
		}
		object := newObject()
		strict, err := json.UnmarshalStrict(data, object)
		if err := errors.Join(append(strict, err)...); err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// validate checks what decode accepts: against the schemas, which have required fields, types and
// enums, but no patterns; and the names, labels and annotations of each object, as the API server
// does. The other rules of the API server are not checked, such as those for several fields, for
// names in the fields and for ranges of numbers. They are in k8s.io/kubernetes, which is not made
// to be imported: its go.mod needs a replacement for each of its modules.
func validate(t *testing.T, text string, objects []apiObject) error {
	t.Helper()
	schemas := newSchemas(t)
	var failures []error
	documents := strings.Split(text, "\n---\n")
	for i, object := range objects {
		data, err := yaml.YAMLToJSONStrict([]byte(documents[i]))
		if err != nil {
			return err
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			return err
		}
		schema, err := schemas.Compile(schemasFile + "#/definitions/" + object.OpenAPIModelName())
		if err != nil {
			t.Fatal(err)
		}
		_, global := object.(*corev1.Namespace) // belongs to no namespace
		failures = append(failures, schema.Validate(value), validation.ValidateObjectMetaAccessor(
			object, !global, validation.NameIsDNSSubdomain, field.NewPath("metadata")).ToAggregate())
	}
	return errors.Join(failures...)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestManifestsAreValid(t *testing.T) {
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, name := range files {
		text := readFile(t, name)
		objects, err := decode(t, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := validate(t, text, objects); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := readFile(t, "kubernetes/node.yaml")
	for what, change := range map[string][2]string{
		"unknown field": {"readinessProbe:", "readynessProbe:"}, "wrong type": {"replicas: 3", "replicas: three"},
		"field twice": {"  replicas: 3", "  replicas: 3\n  replicas: 3"}, "wrong case": {"  replicas: 3", "  Replicas: 3"}, "text as a number": {`value: "8080"`, "value: 8080"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := decode(t, bad); bad == good || err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

// Each change is one that only validate rejects, with an error that names the field.
func TestInvalidManifests(t *testing.T) {
	good := readFile(t, "kubernetes/node.yaml")
	for what, change := range map[string]struct{ old, new, want string }{
		"container without a name":      {"- name: shop\n          image:", "- image:", "containers/0': missing property 'name'"},
		"deployment without a selector": {"  selector:\n    matchLabels: {app.kubernetes.io/name: shop}\n  strategy:", "  strategy:", "missing property 'selector'"},
		"probe without a port":          {"{path: /ready, port: http}", "{path: /ready}", "missing property 'port'"},
		"nothing instead of a list":     {"ports:\n    - {name: http, port: 80, targetPort: http}", "ports: null", "spec/ports': got null, want array"},
		"unknown protocol":              {"{protocol: UDP, port: 53}", "{protocol: UPD, port: 53}", "protocol': value must be one of"},
		"unknown type of policy":        {"[Ingress, Egress]", "[Ingress, Egres]", "policyTypes/1': value must be one of"},
		"unknown type of profile":       {"RuntimeDefault", "Default", "seccompProfile/type': value must be one of"},
		"unknown constraint":            {"ScheduleAnyway", "Schedule", "whenUnsatisfiable': value must be one of"},
		"name with a capital letter":    {"  name: shop\n", "  name: Shop\n", "metadata.name: Invalid value"},
		"label with a space":            {"labels: {app.kubernetes.io/name: shop}", "labels: {app.kubernetes.io/name: a shop}", "metadata.labels: Invalid value"},
		"object without a namespace":    {"  namespace: shop\nstringData", "stringData", "metadata.namespace: Required value"},
	} {
		t.Run(what, func(t *testing.T) {
			bad := strings.Replace(good, change.old, change.new, 1)
			objects, err := decode(t, bad)
			if bad == good || err != nil {
				t.Fatalf("not a change that decode accepts: %v", err)
			}
			if err := validate(t, bad, objects); err == nil || !strings.Contains(err.Error(), change.want) {
				t.Errorf("got %v, want %q", err, change.want)
			}
		})
	}
}

// object returns the only object of a type.
func object[T any](t *testing.T, objects []apiObject) (found T) {
	t.Helper()
	n := 0
	for _, o := range objects {
		if o, ok := any(o).(T); ok {
			found, n = o, n+1
		}
	}
	if n != 1 {
		t.Fatalf("%d objects of type %T", n, found)
	}
	return found
}

// The environment of the node's manifest is a valid configuration, and its objects fit together.
func TestNode(t *testing.T) {
	objects, err := decode(t, readFile(t, "kubernetes/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	deployment, secret := object[*appsv1.Deployment](t, objects), object[*corev1.Secret](t, objects)
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]

	dir := t.TempDir()
	for name, value := range secret.StringData {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount := container.VolumeMounts[0]
	if mount.Name != pod.Volumes[0].Name || pod.Volumes[0].Secret.SecretName != secret.Name || mount.SubPath != "" {
		t.Errorf("mount %+v of volume %+v", mount, pod.Volumes[0])
	}
	env := map[string]string{}
	fields := map[string]string{"metadata.name": "shop-5d5f8-x2x4z", "status.podIP": "fd00::7"}
	for _, v := range container.Env {
		env[v.Name] = strings.Replace(v.Value, mount.MountPath, dir, 1)
		if v.ValueFrom != nil {
			env[v.Name] = fields[v.ValueFrom.FieldRef.FieldPath]
		}
	}
	used := map[string]bool{}
	cfg, err := cluster.ConfigFrom(func(name string) (string, bool) {
		value, ok := env[name]
		used[name] = used[name] || ok
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(used, func(_ string, ok bool) bool { return !ok })
	if len(used) != len(env) {
		t.Errorf("%d variables are set, %d are used: %v", len(env), len(used), used)
	}
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Config(); got.ClusterBaseURL != "http://[fd00::7]:8080/shop/v1" || got.ID != fields["metadata.name"] || !got.Management {
		t.Errorf("the node is %s at %s", got.ID, got.ClusterBaseURL)
	}
	if int(container.Ports[0].ContainerPort) != cfg.Port || container.ReadinessProbe.HTTPGet.Path != "/ready" {
		t.Errorf("port %d, readiness %+v", container.Ports[0].ContainerPort, container.ReadinessProbe)
	}
	if grace := *pod.TerminationGracePeriodSeconds; grace < 26 {
		t.Errorf("%d s to leave, the node needs 25", grace)
	}
	checkLabels(t, objects)
	checkPorts(t, objects)
}

// checkPorts checks that probes, service and policy name the port of the container. A wrong name is
// a valid port, which nothing listens at.
func checkPorts(t *testing.T, objects []apiObject) {
	t.Helper()
	container := object[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers[0]
	policy := object[*networkingv1.NetworkPolicy](t, objects).Spec
	for what, got := range map[string]intstr.IntOrString{
		"readiness probe": container.ReadinessProbe.HTTPGet.Port,
		"liveness probe":  container.LivenessProbe.TCPSocket.Port,
		"service":         object[*corev1.Service](t, objects).Spec.Ports[0].TargetPort,
		"ingress":         *policy.Ingress[0].Ports[0].Port,
		"egress":          *policy.Egress[0].Ports[0].Port,
	} {
		if got.StrVal != container.Ports[0].Name {
			t.Errorf("the %s has the port %q, the container %q", what, got.String(), container.Ports[0].Name)
		}
	}
}

// checkLabels checks that all objects select the pods, and the registry's policy its pods.
func checkLabels(t *testing.T, objects []apiObject) {
	t.Helper()
	labels := object[*appsv1.Deployment](t, objects).Spec.Template.Labels
	policy := object[*networkingv1.NetworkPolicy](t, objects).Spec
	for what, got := range map[string]map[string]string{
		"deployment": object[*appsv1.Deployment](t, objects).Spec.Selector.MatchLabels,
		"service":    object[*corev1.Service](t, objects).Spec.Selector,
		"budget":     object[*policyv1.PodDisruptionBudget](t, objects).Spec.Selector.MatchLabels,
		"policy":     policy.PodSelector.MatchLabels,
		"ingress":    policy.Ingress[0].From[0].PodSelector.MatchLabels,
		"egress":     policy.Egress[0].To[0].PodSelector.MatchLabels,
	} {
		if diff := cmp.Diff(labels, got); diff != "" {
			t.Errorf("the %s selects other pods (-want +got):\n%s", what, diff)
		}
	}
	registry, err := decode(t, readFile(t, "kubernetes/mit.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	mit := object[*appsv1.Deployment](t, registry).Spec.Template
	to, port := policy.Egress[1].To[0], policy.Egress[1].Ports[0].Port.StrVal
	if diff := cmp.Diff(mit.Labels, to.PodSelector.MatchLabels); diff != "" || mit.Spec.Containers[0].Ports[0].Name != port {
		t.Errorf("the policy lets nodes call port %s of (-want +got):\n%s", port, diff)
	}
}
